/* Reads parameters from a file in the preopened directory, through WASI alone. The module knows the
   file's name, length and SHA-256 (FIPS 180-4), and runs with no other parameters. Generated from a
   plan. */
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef unsigned char byte;

#define WASI(function) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#function)))
struct piece { byte *at; uint32_t length; };
WASI(path_open) int32_t path_open(int32_t folder, int32_t lookup, const char *path, int32_t length, int32_t how,
                                  uint64_t rights, uint64_t inherited, int32_t flags, int32_t *opened);
WASI(fd_read) int32_t fd_read(int32_t file, const struct piece *pieces, int32_t count, uint32_t *got);
WASI(fd_close) int32_t fd_close(int32_t file);

#define FOLDER 3 /* file descriptor of the first preopened directory */
#define RIGHT_TO_READ 2
#define AT_ONCE (1u << 20) /* Wasmtime refuses to read more than its allowance of host memory in one call */
enum { MISSING = 1, UNREADABLE, WRONG_LENGTH, WRONG_CONTENT };

_Alignas(64) byte wasmgraph_params[@PARAM_BYTES@];
static const char name[] = "@PARAMS_FILE@";
static const byte expected[32] = {@DIGEST@};
static int32_t loaded;

#define ROTATED(x, by) ((x) >> (by) | (x) << (32 - (by)))

static void absorb(uint32_t state[8], const byte *block) {
    /* Fractional parts of the cube roots of the first 64 primes. */
    static const uint32_t constants[64] = {
        @ROUND_CONSTANTS@};
    uint32_t words[64], s[8];
    for (int32_t i = 0; i < 16; ++i)
        words[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
#pragma unroll
    for (int32_t i = 16; i < 64; ++i) {
        uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (ROTATED(a, 7) ^ ROTATED(a, 18) ^ a >> 3) +
                   (ROTATED(b, 17) ^ ROTATED(b, 19) ^ b >> 10);
    }
    for (int32_t i = 0; i < 8; ++i) s[i] = state[i];
#pragma unroll
    for (int32_t i = 0; i < 64; ++i) {
        uint32_t one = s[7] + (ROTATED(s[4], 6) ^ ROTATED(s[4], 11) ^ ROTATED(s[4], 25)) +
                       ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + words[i];
        uint32_t two = (ROTATED(s[0], 2) ^ ROTATED(s[0], 13) ^ ROTATED(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + one;
        s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = one + two;
    }
    for (int32_t i = 0; i < 8; ++i) state[i] += s[i];
}

/* The parameters are a multiple of 64 bytes long, so SHA-256's padding is a block of its own. */
static int32_t as_expected(void) {
    uint32_t state[8] = {@INITIAL_STATE@};
    for (uint32_t at = 0; at < sizeof wasmgraph_params; at += 64) absorb(state, wasmgraph_params + at);
    byte last[64] = {0x80};
    for (int32_t i = 0; i < 8; ++i) last[56 + i] = (byte)((uint64_t)sizeof wasmgraph_params * 8 >> 8 * (7 - i));
    absorb(state, last);
    for (int32_t i = 0; i < 32; ++i)
        if ((byte)(state[i / 4] >> 8 * (3 - i % 4)) != expected[i]) return 0;
    return 1;
}

/* Read and check the parameters, once. Return 0 or the reason for failure. No step runs before this
   succeeds. */ int32_t wasmgraph_load(void) {
    if (loaded) return 0;
    int32_t file;
    if (path_open(FOLDER, 0, name, sizeof name - 1, 0, RIGHT_TO_READ, 0, 0, &file)) return MISSING;
    uint32_t total = 0, got, more = 0;
    byte beyond;
    int32_t error;
    do {
        uint32_t left = sizeof wasmgraph_params - total;
        struct piece next = {wasmgraph_params + total, left < AT_ONCE ? left : AT_ONCE};
        error = fd_read(file, &next, 1, &got);
        total += error ? 0 : got;
    } while (!error && got && total < sizeof wasmgraph_params);
    struct piece end = {&beyond, 1};
    if (!error) error = fd_read(file, &end, 1, &more);
    fd_close(file);
    if (error) return UNREADABLE;
    if (total != sizeof wasmgraph_params || more) return WRONG_LENGTH;
    if (!as_expected()) return WRONG_CONTENT;
    loaded = 1;
    return 0;
}
