/* A pool of threads that share the tasks of a step.
 *
 * The thread that runs the model is one of them. Tasks are handed out by an atomic counter, so a
 * thread that is slow, or descheduled, takes fewer. Between steps the others spin for a moment,
 * because the next step follows within microseconds, and then sleep. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS 4000 /* some tens of microseconds */

typedef struct {
  const edgec_step_entry* step;
  void* const* buffers;
} job;

typedef struct {
  int32_t threads;
  pthread_t* workers;
  job current;
  /* Number of the step that is being shared; it changes when a step begins. */
  _Alignas(64) atomic_uint generation;
  _Alignas(64) atomic_int next;    /* first task that is not handed out */
  _Alignas(64) atomic_int working; /* workers that have not finished this step */
  atomic_int stop;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int32_t sleepers;
} edgec_pool;

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static void work(edgec_pool* pool) {
  const job now = pool->current;
  const int32_t tasks = now.step->tasks, grain = now.step->grain;
  for (;;) {
    int32_t begin = atomic_fetch_add_explicit(&pool->next, grain, memory_order_relaxed);
    if (begin >= tasks) return;
    int32_t end = begin + grain < tasks ? begin + grain : tasks;
    call_kernel(now.step, now.buffers, begin, end);
  }
}

static void wait_for_step(edgec_pool* pool, unsigned seen) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
    relax();
  }
  pthread_mutex_lock(&pool->lock);
  ++pool->sleepers;
  while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
    pthread_cond_wait(&pool->wake, &pool->lock);
  --pool->sleepers;
  pthread_mutex_unlock(&pool->lock);
}

static void* worker(void* argument) {
  edgec_pool* pool = argument;
  unsigned seen = 0;
  for (;;) {
    wait_for_step(pool, seen);
    ++seen;
    if (atomic_load_explicit(&pool->stop, memory_order_acquire)) return NULL;
    work(pool);
    atomic_fetch_sub_explicit(&pool->working, 1, memory_order_release);
  }
}

static void announce(edgec_pool* pool) {
  atomic_store_explicit(&pool->working, pool->threads - 1, memory_order_relaxed);
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
  if (pool->sleepers) pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static void pool_run(edgec_pool* pool, const edgec_step_entry* step, void* const* buffers) {
  if (pool->threads == 1 || step->tasks <= step->grain) {
    call_kernel(step, buffers, 0, step->tasks);
    return;
  }
  pool->current = (job){step, buffers};
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  announce(pool);
  work(pool);
  for (int spin = 0; atomic_load_explicit(&pool->working, memory_order_acquire) > 0; ++spin) {
    if (spin < SPINS)
      relax();
    else
      sched_yield();
  }
}

static void pool_close(edgec_pool* pool) {
  if (!pool) return;
  atomic_store_explicit(&pool->stop, 1, memory_order_release);
  announce(pool);
  for (int32_t i = 0; i + 1 < pool->threads; ++i) pthread_join(pool->workers[i], NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->lock);
  free(pool->workers);
  free(pool);
}

static edgec_pool* pool_open(int32_t threads) {
  if (threads <= 0) threads = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
  if (threads < 1) threads = 1;
  edgec_pool* pool = NULL;
  if (posix_memalign((void**)&pool, 64, sizeof *pool)) return NULL;
  *pool = (edgec_pool){.threads = 1};
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  if (!pool->workers) {
    pool_close(pool);
    return NULL;
  }
  for (; pool->threads < threads; ++pool->threads) {
    if (pthread_create(&pool->workers[pool->threads - 1], NULL, worker, pool)) {
      pool_close(pool);
      return NULL;
    }
  }
  return pool;
}

static int32_t pool_threads(const edgec_pool* pool) { return pool->threads; }
