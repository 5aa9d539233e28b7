/* A plugin of QEMU that counts instructions. Arguments: out=FILE and mark=NUMBER, repeatable.
 *
 * Each time the emulated program makes a system call of one of these numbers, the count of the
 * instructions that it executed so far goes into the file, as a decimal line. Threads share one
 * count without a lock: meant for programs of one thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's plugin interface that is used here. Its version 1 is that of QEMU up to 8.2,
 * 2 that of later ones; between them nothing of this part changed. */
typedef uint64_t plugin_id;
typedef struct qemu_plugin_tb block;
enum { READS_NO_REGISTERS = 0 };
size_t qemu_plugin_tb_n_insns(const block*);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, block*));
void qemu_plugin_register_vcpu_tb_exec_cb(block*, void (*)(unsigned processor, void*), int, void*);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id,
                                          void (*)(plugin_id, unsigned, int64_t number, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t));
#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = QEMU_API;

enum { MOST_MARKS = 4 };
static int64_t marks[MOST_MARKS];
static int mark_count;
static uint64_t executed;
static FILE* out;

static void execute(unsigned processor, void* instructions) {
  (void)processor;
  executed += (uintptr_t)instructions;
}

/* A block is executed from its first instruction to its last. */
static void translate(plugin_id id, block* translated) {
  (void)id;
  void* instructions = (void*)(uintptr_t)qemu_plugin_tb_n_insns(translated);
  qemu_plugin_register_vcpu_tb_exec_cb(translated, execute, READS_NO_REGISTERS, instructions);
}

static void call_system(plugin_id id, unsigned processor, int64_t number, uint64_t a, uint64_t b,
                        uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)processor, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  for (int i = 0; i < mark_count; ++i)
    if (marks[i] == number) fprintf(out, "%" PRIu64 "\n", executed);
  fflush(out);
}

EXPORTED int qemu_plugin_install(plugin_id id, const void* info, int count, char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (!strncmp(arguments[i], "out=", 4)) out = fopen(arguments[i] + 4, "w");
    else if (!strncmp(arguments[i], "mark=", 5) && mark_count < MOST_MARKS)
      marks[mark_count++] = atoll(arguments[i] + 5);
  }
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_vcpu_syscall_cb(id, call_system);
  return 0;
}
