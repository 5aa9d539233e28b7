/* Read a prompt and give tokens by llama.cpp, on one thread: the rival of
 * `benchmark_token_instructions.py`, which builds it with llama.cpp's own CMake files.
 *
 * Arguments: MODEL PROMPT TOKENS. The prompt is so many tokens, read in one batch; of each token
 * that follows the likeliest one is taken. Writes the tokens. */
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

enum { CONTEXT = 1024, FIRST = 100, OTHERS = 1000 };

static void fail(const char* what) {
  fprintf(stderr, "llama_tokens: %s\n", what);
  exit(1);
}

static void be_quiet(enum ggml_log_level level, const char* text, void* data) {
  (void)data;
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int count, char** arguments) {
  if (count != 4) fail("usage: llama_tokens MODEL PROMPT TOKENS");
  int prompt = atoi(arguments[2]), wanted = atoi(arguments[3]);
  if (prompt < 1 || wanted < 0 || prompt + wanted > CONTEXT) fail("too many tokens, or none");
  llama_log_set(be_quiet, NULL);
  llama_backend_init();
  struct llama_model_params loading = llama_model_default_params();
  loading.n_gpu_layers = 0;
  struct llama_model* model = llama_model_load_from_file(arguments[1], loading);
  if (!model) fail("cannot load the model");
  struct llama_context_params settings = llama_context_default_params();
  settings.n_ctx = settings.n_batch = CONTEXT;
  settings.n_threads = settings.n_threads_batch = 1;
  struct llama_context* context = llama_init_from_model(model, settings);
  if (!context) fail("no memory");
  struct llama_sampler* likeliest = llama_sampler_init_greedy();
  llama_token tokens[CONTEXT];
  for (int i = 0; i < prompt; ++i) tokens[i] = FIRST + i * 7 % OTHERS;
  /* Of a batch of this form the last token has logits. */
  if (llama_decode(context, llama_batch_get_one(tokens, prompt))) fail("cannot read the prompt");
  for (int i = 0; i < wanted; ++i) {
    llama_token token = llama_sampler_sample(likeliest, context, -1);
    printf("%d\n", (int)token);
    if (llama_decode(context, llama_batch_get_one(&token, 1))) fail("cannot go on");
  }
  llama_synchronize(context);
  llama_sampler_free(likeliest);
  llama_free(context);
  llama_model_free(model);
  llama_backend_free();
  return 0;
}
