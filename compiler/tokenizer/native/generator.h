/* A language model that goes on with tokens: its programs, and the cache of what they have read.
 *
 * A model is one if its programs take `input_ids` int64 [B, S] and `last` int64 [B, R], indices of
 * which the last is that of the last token that is no padding, and give `logits` float32 [B, R, V]
 * of these tokens; R is 1, or S in a program that checks guesses; and if its state has `past_length` int32 [B], the tokens read so far, and caches [B, heads, T, size]. B is 1,
 * or a session keeps B texts, which programs of one text each run one by one. */
#ifndef EDGEC_GENERATOR_H
#define EDGEC_GENERATOR_H

#include "edgec.h"
#include "generation.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What functions below give in place of a count; `edgec_generator_error` says why. */
enum { EDGEC_CONTEXT_FULL = -11, EDGEC_RUN_FAILED = -12, EDGEC_BAD_CACHE = -13 };

typedef struct edgec_generator edgec_generator;

/* A generator on a session, which nobody else may run meanwhile: of one of the texts that the
 * session keeps, counted from 0. NULL if it is no language model, it keeps fewer texts, or there is no
 * memory: then `message` says why. */
edgec_generator* edgec_generator_open(const edgec_model* model, edgec_session* session, int32_t text,
                                      char* message, size_t room);
void edgec_generator_close(edgec_generator* generator);

/* Tokens that the cache has room for, and tokens that logits are of. */
int32_t edgec_generator_context(const edgec_generator* generator);
int32_t edgec_generator_vocabulary(const edgec_generator* generator);

/* Read a whole text. What it shares from its beginning with what was read before is not computed
 * again. Returns how many tokens were, or an error above; a text that does not fit changes
 * nothing. */
int64_t edgec_generator_read(edgec_generator* generator, const int32_t* ids, size_t count);

/* Read one more token. */
int64_t edgec_generator_append(edgec_generator* generator, int32_t id);

/* Read one more token each, of different texts of one session, in as few runs as its programs
 * allow. What became of each is in `results`, as `edgec_generator_append` gives it. */
void edgec_generators_append(edgec_generator* const* generators, const int32_t* ids, size_t count,
                             int64_t* results);

/* Guess what follows where the last tokens were there before, and check up to `most_guesses` guesses
 * in one run, with a program that gives logits of each token. What is read, and its logits, are the
 * same with guesses or without; none are tried if `most_guesses` is 0, and by
 * EDGEC_GUESSES_THAT_PAY, with which a generator begins, as many as the program takes, as long as
 * they make it faster by the clock. */
enum { EDGEC_GUESSES_THAT_PAY = -1 };
void edgec_generator_speculate(edgec_generator* generator, int32_t most_guesses);

typedef struct {
  int64_t runs;    /* that checked guesses */
  int64_t guessed; /* tokens */
  int64_t right;   /* of these the ones that were read afterwards, which took no run */
} edgec_guess_counts;

/* What became of guesses since the generator was opened. */
edgec_guess_counts edgec_generator_guesses(const edgec_generator* generator);

/* Logits of what may follow the last token that was read. */
const float* edgec_generator_logits(const edgec_generator* generator);

/* The tokens that were read. */
size_t edgec_generator_tokens(const edgec_generator* generator, const int32_t** ids);

/* Write what was read to a file, and read it again later: by the same model, which `digest` tells
 * from others. They give 0 or an error above. */
int64_t edgec_generator_save(edgec_generator* generator, const char* path,
                             const unsigned char digest[32]);
int64_t edgec_generator_load(edgec_generator* generator, const char* path,
                             const unsigned char digest[32]);

const char* edgec_generator_error(const edgec_generator* generator);

/* ---- a reply ---- */

/* Why a reply ended: by a stop token of the model, after as many tokens as it may have, by a stop
 * string, because the context is full, or because a program failed. */
enum {
  EDGEC_REPLY_GOES_ON,
  EDGEC_REPLY_END,
  EDGEC_REPLY_LENGTH,
  EDGEC_REPLY_STOP,
  EDGEC_REPLY_CONTEXT,
  EDGEC_REPLY_FAILED
};

typedef struct edgec_reply edgec_reply;

/* A reply of at most so many tokens to what a generator read last. `continues`: see
 * edgec_stream_open. NULL if there is no memory. */
edgec_reply* edgec_reply_open(edgec_generator* generator, const edgec_tokenizer* tokenizer,
                              const edgec_sampling* sampling, int64_t most_tokens, int continues);
void edgec_reply_close(edgec_reply* reply);

/* See edgec_stream_stop_at. */
int edgec_reply_stop_at(edgec_reply* reply, const char* text, size_t bytes);

/* Read the tokens that replies gave last, which otherwise the next call for each of them does one by
 * one; see edgec_generators_append. */
void edgec_replies_read(edgec_reply* const* replies, size_t count);

/* The next token, or -1 if there is none; and the text that is known now, which may be some even if
 * there is no token. */
int32_t edgec_reply_next(edgec_reply* reply, const char** text, int64_t* bytes);

/* Why there is no next token. */
int edgec_reply_reason(const edgec_reply* reply);

#ifdef __cplusplus
}
#endif

#endif
