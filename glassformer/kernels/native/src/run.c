/* Run a list of operations on the threads of an OpenMP runtime, with a barrier after each. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "op.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_THREADS 256
#define SPINS 20000

extern const Level gf_level_scalar;
#ifdef GF_HAS_AVX2
extern const Level gf_level_avx2;
#endif

static const Level *const levels[] = {
    &gf_level_scalar,
#ifdef GF_HAS_AVX2
    &gf_level_avx2,
#endif
};
#define N_LEVELS ((int)(sizeof levels / sizeof *levels))

static const Level *level = &gf_level_scalar;
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
static int (*thread_number)(void), (*thread_count)(void);               /* omp_get_thread_num, omp_get_num_threads */

static struct { int64_t calls, operations, barriers; } counters;

EXPORT int gf_abi(void) { return GF_ABI; }
EXPORT int gf_levels(void) { return N_LEVELS; }
EXPORT const char *gf_level_name(int i) { return levels[i]->name; }
EXPORT void gf_set_level(int i) { level = levels[i]; }
EXPORT const int64_t *gf_counters(void) { return &counters.calls; }

/* The functions of the OpenMP runtime that PyTorch uses, so that there is one pool of threads; NULL: no threads. */
EXPORT void gf_set_parallel(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads) {
    *(void **)&parallel = gomp_parallel;
    *(void **)&thread_number = omp_get_thread_num;
    *(void **)&thread_count = omp_get_num_threads;
}

typedef struct {
    const Op *ops;
    int n;
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic int phase;
    _Atomic int failed;
} Work;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void barrier(Work *work, int n_threads) {
    int phase = atomic_load_explicit(&work->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&work->arrived, 1, memory_order_acq_rel) == n_threads - 1) {
        atomic_store_explicit(&work->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&work->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&work->phase, memory_order_acquire) == phase; spins++) {
        if (spins < SPINS) relax();
        else sched_yield(); /* another process has this core */
    }
}

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static void make_scratch_key(void) { pthread_key_create(&scratch_key, free); /* frees it when the thread ends */ }

static void *thread_scratch(void) {
    static _Thread_local void *scratch;
    if (scratch != NULL) return scratch;
    pthread_once(&scratch_once, make_scratch_key);
    scratch = aligned_alloc(64, GF_SCRATCH);
    if (scratch != NULL) pthread_setspecific(scratch_key, scratch);
    return scratch;
}

static void run_thread(Work *work, int thread, int n_threads) {
    void *scratch = thread_scratch();
    if (scratch == NULL) atomic_store(&work->failed, 1);
    for (int i = 0; i < work->n; i++) {
        const Op *op = work->ops + i;
        if (scratch != NULL) level->functions[op->kind](op, thread, n_threads, scratch);
        if (n_threads > 1 && !op->no_barrier) barrier(work, n_threads);
    }
}

static void run_worker(void *data) { run_thread(data, thread_number(), thread_count()); }

/* Run operations in order on `n_threads` threads. Returns 0; 1: no memory. The last one must have a barrier. */
EXPORT int gf_run(const Op *ops, int n, int n_threads) {
    Work work = {.ops = ops, .n = n};
    counters.calls++;
    counters.operations += n;
    if (n_threads > 1 && parallel != NULL) {
        for (int i = 0; i < n; i++) counters.barriers += !ops[i].no_barrier;
        parallel(run_worker, &work, (unsigned)(n_threads < MAX_THREADS ? n_threads : MAX_THREADS), 0);
    } else {
        run_thread(&work, 0, 1);
    }
    return work.failed;
}
