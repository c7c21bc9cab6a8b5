/* The entry of a graph: calls its kernels in order. Generated from a plan; `arena` and
   `wasmgraph_params` are where its addresses begin. Returns 0, or a kernel's error code. */
typedef __INT32_TYPE__ int32_t;
typedef unsigned char byte;

#define ARENA(offset) ((void *)(arena + (offset)))
#define PARAMS(offset) ((void *)(wasmgraph_params + (offset)))

extern byte wasmgraph_params[];

@DECLARATIONS@

static int32_t step(byte *arena, int32_t index) {
    (void)arena;
    switch (index) {
@STEPS@
    default: return -1;
    }
}

static int32_t run(byte *arena) {
    int32_t error = 0;
    for (int32_t index = 0; index < @COUNT@ && !error; ++index)
        error = step(arena, index);
    return error;
}

#ifdef __wasm__
_Alignas(64) byte wasmgraph_arena[@ARENA_BYTES@];

int32_t wasmgraph_run(void) { return run(wasmgraph_arena); }
int32_t wasmgraph_step(int32_t index) { return step(wasmgraph_arena, index); }
#else
/* A library is loaded once a process: each session brings its own arena, 64-byte aligned. */
int32_t wasmgraph_native_run(byte *arena) { return run(arena); }
int32_t wasmgraph_native_step(byte *arena, int32_t index) { return step(arena, index); }
#endif
