/* Measures a core's peak performance: multiply-add on registers, in two forms, and reading memory once.
   Steps 0 and 1 are arithmetic, step 2 writes the whole arena, step 3 reads it. LANES, CHAINS, ROWS,
   COLUMNS and the sizes are given on the command line. Operands come from memory, so that the compiler
   cannot compute results. With several threads, each does all of the arithmetic and its share of the
   memory. */
typedef __INT32_TYPE__ int32_t;
typedef unsigned char byte;
typedef float vec __attribute__((vector_size(4 * LANES)));

#define TILE_CELLS (COLUMNS * (ROWS + 1))
#define TURNS 64 /* rows that the first-level cache holds; ITERATIONS divides by it */

#if RELAXED
#define MADD(a, x, y) __builtin_wasm_relaxed_madd_f32x4((a), (x), (y))
#else
#define MADD(a, x, y) ((a) * (x) + (y))
#endif

/* Independent chains: each multiply and add waits for the one before it in its chain. */
static int32_t chains(byte *arena) {
    vec *cell = (vec *)arena;
    vec x = cell[0], y = cell[1], a[CHAINS];
    for (int c = 0; c < CHAINS; ++c) a[c] = cell[2 + c];
    for (int32_t i = 0; i < ITERATIONS; ++i) {
#pragma clang loop unroll(full)
        for (int c = 0; c < CHAINS; ++c) a[c] = MADD(a[c], x, y);
    }
    for (int c = 0; c < CHAINS; ++c) cell[2 + c] = a[c];
    return 0;
}

/* A register tile, ROWS vectors by COLUMNS. Products do not depend on each other, so that this also
   keeps a processor busy that has more units than CHAINS chains can use. */
static int32_t tile(byte *arena) {
    vec *cell = (vec *)arena;
    vec y[COLUMNS], a[ROWS][COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) y[c] = cell[c];
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) a[r][c] = cell[COLUMNS + r * COLUMNS + c];
    for (int32_t i = 0; i < ITERATIONS / TURNS; ++i) {
        const vec *x = cell + TILE_CELLS, *end = x + TURNS * ROWS;
#pragma clang loop unroll(disable)
        for (; x != end; x += ROWS) {
#pragma clang loop unroll(full)
            for (int r = 0; r < ROWS; ++r) {
                vec row = x[r];
#pragma clang loop unroll(full)
                for (int c = 0; c < COLUMNS; ++c) a[r][c] = MADD(row, y[c], a[r][c]);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) cell[COLUMNS + r * COLUMNS + c] = a[r][c];
    return 0;
}

static int32_t fill(byte *arena, int32_t bytes) {
    vec *cell = (vec *)arena, value = cell[0] + 1.0f;
    for (int32_t i = 0; i < bytes / (4 * LANES); ++i) cell[i] = value;
    return 0;
}

static int32_t stream(byte *arena, int32_t bytes) {
    const vec *cell = (const vec *)arena;
    vec a = cell[0], b = a, c = a, d = a;
    for (int32_t i = 0; i < bytes / (4 * LANES); i += 4) {
        a += cell[i];
        b += cell[i + 1];
        c += cell[i + 2];
        d += cell[i + 3];
    }
    *(vec *)arena = a + b + c + d;
    return 0;
}

static int32_t step(byte *arena, int32_t index, int32_t bytes) {
    switch (index) {
    case 0: return chains(arena);
    case 1: return tile(arena);
    case 2: return fill(arena, bytes);
    case 3: return stream(arena, bytes);
    default: return -1;
    }
}

#ifdef __wasm__
_Alignas(64) byte wasmgraph_arena[ARENA_BYTES];

#ifdef __wasm_atomics__
extern int32_t wasmgraph_take(int32_t turns, int32_t threads, int32_t *end);
extern int32_t wasmgraph_barrier(int32_t threads);

int32_t wasmgraph_shared_step(int32_t index, int32_t threads) {
    int32_t part = ARENA_BYTES / threads / 4096 * 4096, end;
    for (int32_t turn; (turn = wasmgraph_take(threads, threads, &end)) < threads;)
        for (; turn < end; ++turn) step(wasmgraph_arena + turn * part, index < 0 ? 0 : index, part);
    return wasmgraph_barrier(threads);
}
#else
int32_t wasmgraph_run(void) { return chains(wasmgraph_arena); }
int32_t wasmgraph_step(int32_t index) { return step(wasmgraph_arena, index, ARENA_BYTES); }
#endif
#else
int32_t wasmgraph_native_run(byte *arena) { return chains(arena); }
int32_t wasmgraph_native_step(byte *arena, int32_t index) { return step(arena, index, ARENA_BYTES); }
#endif
