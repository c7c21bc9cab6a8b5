/* A graph as a WASI command. It reads inputs as raw bytes from standard input, one after the other, and
   writes outputs in the same way to standard output, until the input ends. Generated from a plan. */
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef unsigned char byte;

#define WASI(function) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#function)))
struct piece { byte *at; uint32_t length; };
WASI(fd_read) int32_t fd_read(int32_t file, const struct piece *pieces, int32_t count, uint32_t *got);
WASI(fd_write) int32_t fd_write(int32_t file, const struct piece *pieces, int32_t count, uint32_t *written);
WASI(proc_exit) _Noreturn void proc_exit(int32_t status);

extern byte wasmgraph_arena[];
extern int32_t wasmgraph_run(void);
#ifdef WASI_PARAMS
extern int32_t wasmgraph_load(void);
#endif

enum { INPUT, OUTPUT, MESSAGES };
enum { BAD_INPUT = 2, FAILED = 3 };
static const struct { uint32_t offset, length; } inputs[] = {@INPUTS@}, outputs[] = {@OUTPUTS@};

static void put(int32_t file, const void *bytes, uint32_t length) {
    for (uint32_t done = 0, now; done < length; done += now) {
        struct piece rest = {(byte *)bytes + done, length - done};
        if (fd_write(file, &rest, 1, &now) || !now) proc_exit(FAILED);
    }
}

#define END(status, text) (put(MESSAGES, text "\n", sizeof text), proc_exit(status))

/* Read the next inputs; return 0 at the end of the input. */
static int32_t next(void) {
    int32_t any = 0;
    for (uint32_t i = 0; i < @INPUT_COUNT@; ++i)
        for (uint32_t done = 0, now; done < inputs[i].length; done += now, any = 1) {
            struct piece rest = {wasmgraph_arena + inputs[i].offset + done, inputs[i].length - done};
            if (fd_read(INPUT, &rest, 1, &now)) END(BAD_INPUT, "standard input cannot be read");
            if (!now && !any) return 0;
            if (!now) END(BAD_INPUT, "standard input ended in the middle of: @EXPECTED@");
        }
    return 1;
}

int main(void) {
#ifdef WASI_PARAMS
    if (wasmgraph_load())
        END(BAD_INPUT, "the parameters are not there, or not the ones of this module: wasmtime run --dir wasmgraph-params");
#endif
    if (!next()) END(BAD_INPUT, "expected on standard input: @EXPECTED@");
    do {
        int32_t error = wasmgraph_run();
        if (error >= @FIRST_CHECK@) END(BAD_INPUT, "the inputs make an index point beyond a tensor");
        if (error) END(FAILED, "the graph reported an error");
        for (uint32_t i = 0; i < @OUTPUT_COUNT@; ++i)
            put(OUTPUT, wasmgraph_arena + outputs[i].offset, outputs[i].length);
    } while (@INPUT_BYTES@ && next());
    return 0;
}
