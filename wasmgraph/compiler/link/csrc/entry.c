/* The entry of a graph: calls its kernels in order. Generated from a plan, whose addresses are relative to
   `arena` and `wasmgraph_params`. Returns 0 or an error code (docs/abi.md). */
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef unsigned char byte;

#define ARENA(offset) ((void *)(arena + (offset)))
#define PARAMS(offset) ((void *)(wasmgraph_params + (offset)))
#define VALUE(number) ((int64_t)((const int32_t *)ARENA(@DIMS@))[number])
/* A dimension's value, held in its bounds: a single step may be run before it is written. */
#define DIM(number) most(least(VALUE(number), greatest[number]), lowest[number])

extern byte wasmgraph_params[];

#ifdef __wasm_atomics__
/* Every thread executes every step, and takes turns (iterations) of its phases until none is left (pool.c). */
extern int32_t wasmgraph_take(int32_t turns, int32_t threads, int32_t *end);
extern int32_t wasmgraph_barrier(int32_t threads);
#define SHARE , int32_t threads
#define SHARED , threads
#define PHASE(turns, work)                                                                      \
    for (int32_t end, begin; (begin = wasmgraph_take(turns, threads, &end)) < turns;)           \
        work;                                                                                   \
    if (wasmgraph_barrier(threads)) return -1;
#else
#define SHARE
#define SHARED
#ifdef WASI_PARAMS
extern int32_t wasmgraph_load(void); /* params.c; with threads, pool.c calls it */
#define LOAD int32_t missing = wasmgraph_load(); if (missing) return missing;
#else
#define LOAD
#endif
#endif

@DECLARATIONS@

/* What sizes are computed by; a quotient is rounded down. */
static inline int64_t quotient(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The bounds of dimensions. */
static const int32_t lowest[] = {@LOWEST@}, greatest[] = {@GREATEST@};

/* Take over a dimension's value that a kernel has computed. */
static inline void set(byte *arena, int32_t number, int64_t value) {
    ((int32_t *)ARENA(@DIMS@))[number] = (int32_t)most(least(value, greatest[number]), lowest[number]);
}
static inline int32_t beyond(int32_t number, int64_t value) {
    return value < lowest[number] || value > greatest[number] ? @FIRST_DIM@ + number : 0;
}

static int32_t step(byte *arena, int32_t index SHARE) {
    (void)arena;
    switch (index) {
@STEPS@
    default: return -1;
    }
}

/* Whether a dimension's value is outside of its bounds: nothing is computed then. */
static int32_t bounded(byte *arena) {
    (void)arena;
@BOUNDS@
    return 0;
}

/* Whether an index was out of range: compares each check's code with its limit. */
static int32_t checked(byte *arena) {
    (void)arena;
@CHECKS@
    return 0;
}

static int32_t run(byte *arena SHARE) {
    int32_t error = bounded(arena);
    if (error) return error;
@RUN@
    return error ? error : checked(arena);
}

#ifdef __wasm__
_Alignas(64) byte wasmgraph_arena[@ARENA_BYTES@];
/* If not 0, kernels run as LLVM compiled them, which is fastest in V8 (pipelining.py). */
int32_t wasmgraph_plain_loops;
#ifdef __wasm_atomics__
int32_t wasmgraph_shared_step(int32_t index SHARE) {
    return index < 0 ? run(wasmgraph_arena SHARED) : step(wasmgraph_arena, index SHARED);
}
#else
int32_t wasmgraph_run(void) { LOAD return run(wasmgraph_arena); }
int32_t wasmgraph_step(int32_t index) { LOAD return step(wasmgraph_arena, index); }
#endif
#else
/* A library is loaded once per process, so each session passes its own arena, 64-byte aligned. */
int32_t wasmgraph_native_run(byte *arena) { return run(arena); }
int32_t wasmgraph_native_step(byte *arena, int32_t index) { return step(arena, index); }
#endif
