/* The threads of a graph. All of them execute the whole job, take turns (iterations) of every phase, and
   wait for each other at barriers. One is the host's caller. The others are host threads that call
   wasmgraph_worker once, each on its own instance with its own stack, over one shared memory.

   A waiting thread first spins for a moment, because phases are short, and then sleeps in
   memory.atomic.wait32. */
typedef __INT32_TYPE__ int32_t;
typedef _Atomic int32_t word;

extern int32_t wasmgraph_shared_step(int32_t index, int32_t threads);
#ifdef WASI_PARAMS
extern int32_t wasmgraph_load(void);
#endif

#define WHOLE_RUN (-1)
#define SPINS 20000 /* tens of microseconds: the cost of waking a sleeping thread */

static int32_t threads = 1; /* written before the first worker begins */
static int32_t job_index;
static word job;     /* number of jobs so far; workers sleep on it */
static word idle;    /* number of workers that wait for a job; thread 0 sleeps on it */
static word turn;    /* number of barriers passed so far; threads at a barrier sleep on it */
static word arrived; /* number of threads at the barrier */
static word taken;   /* number of turns of this phase that threads have taken */
static word failed;  /* a thread trapped: the others must not wait for it */
static word stopped;

static void sleep_while(word *place, int32_t value) {
    for (int32_t i = 0; i < SPINS; ++i)
        if (*place != value) return;
    while (*place == value)
        __builtin_wasm_memory_atomic_wait32((int32_t *)place, value, -1);
}

static void wake(word *place) { __builtin_wasm_memory_atomic_notify((int32_t *)place, -1); }

static void wait_for_workers(void) {
    for (int32_t now = idle; now != threads - 1; now = idle) sleep_while(&idle, now);
}

/* Take the next turns of a phase: half of a thread's share of the remaining turns, so that all threads
   end at about the same time. A thread whose processor is shared with other programs thus gets less
   work. */
int32_t wasmgraph_take(int32_t turns, int32_t count, int32_t *end) {
    int32_t begin = taken;
    do {
        if (failed || begin >= turns) return turns;
        int32_t some = count == 1 ? turns : (turns - begin) / (2 * count);
        *end = begin + (some > 1 ? some : 1);
    } while (!__c11_atomic_compare_exchange_strong(&taken, &begin, *end, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return begin;
}

/* Returns nonzero once a thread has failed. */
int32_t wasmgraph_barrier(int32_t count) {
    if (count == 1) return taken = 0;
    int32_t now = turn;
    if (failed) return 1;
    if (++arrived == count) {
        arrived = taken = 0;
        ++turn;
        wake(&turn);
    } else {
        sleep_while(&turn, now);
    }
    return failed;
}

static int32_t work(int32_t index) {
#ifdef WASI_PARAMS
    int32_t missing = wasmgraph_load();
    if (missing) return missing;
#endif
    wait_for_workers(); /* after a failure they may not have returned yet */
    failed = arrived = taken = 0;
    if (threads == 1) return wasmgraph_shared_step(index, 1);
    idle = 0;
    job_index = index;
    ++job;
    wake(&job);
    int32_t error = wasmgraph_shared_step(index, threads);
    wait_for_workers();
    return failed ? -1 : error;
}

int32_t wasmgraph_run(void) { return work(WHOLE_RUN); }
int32_t wasmgraph_step(int32_t index) { return work(index); }

/* Set the number of threads. The host calls this before the first worker begins. */
void wasmgraph_threads(int32_t count) { threads = count; }

/* Serve jobs until wasmgraph_stop. */
int32_t wasmgraph_worker(void) {
    int32_t done = job;
    for (;;) {
        if (++idle == threads - 1) wake(&idle);
        if (stopped) return 0; /* before this thread first looked at `job` */
        sleep_while(&job, done);
        if (stopped) return 0;
        done = job;
        wasmgraph_shared_step(job_index, threads);
    }
}

/* The host calls this after a trap in any thread, to release the threads that wait for it. A worker that
   trapped then calls wasmgraph_worker again. */
void wasmgraph_fail(void) {
    failed = 1;
    ++turn;
    wake(&turn);
}

/* End every worker. */
void wasmgraph_stop(void) {
    stopped = 1;
    ++job;
    wake(&job);
}
