/* Text to tokens, tokens to text, and the choice of the next token: what a language model needs
 * around its programs. Plain C11, no other library.
 *
 * The tokenizer is a file, tokenizer.bin, that edgec wrote when it compiled the model. It is read
 * in place: a mapped file is not copied. A damaged file is refused when it is opened. */
#ifndef EDGEC_GENERATION_H
#define EDGEC_GENERATION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What functions below give in place of a count. */
enum { EDGEC_TEXT_NO_MEMORY = -1, EDGEC_TEXT_NOT_UTF8 = -2, EDGEC_TEXT_NO_CHAT = -3 };

/* ---- the tokenizer ---- */

typedef struct edgec_tokenizer edgec_tokenizer;

/* A tokenizer of the content of tokenizer.bin, which has to stay where it is; it is aligned to 8
 * bytes. NULL if it is damaged or there is no memory: then `message` says why. */
edgec_tokenizer* edgec_tokenizer_open(const void* data, size_t bytes, char* message, size_t room);
void edgec_tokenizer_close(edgec_tokenizer* tokenizer);

/* Ids below this; an id of it may be without text. */
int32_t edgec_token_count(const edgec_tokenizer* tokenizer);

/* The bytes that a token stands for behind other ones, of which `room` are written: their number, or -1
 * if it is special or there is no such token. */
int64_t edgec_token_bytes(const edgec_tokenizer* tokenizer, int32_t id, char* bytes, size_t room);

/* Whether a model says by this token that its text is complete. */
int edgec_is_stop_token(const edgec_tokenizer* tokenizer, int32_t id);

/* 32 bytes that tell the model of this tokenizer from others. */
const unsigned char* edgec_model_digest(const edgec_tokenizer* tokenizer);

/* The tokens of a text, in memory that edgec_free takes; their number, or an error above.
 * `template_tokens`: whether those that begin and end a text, if it has them, are put around it. */
int64_t edgec_encode(const edgec_tokenizer* tokenizer, const char* text, size_t bytes,
                     int template_tokens, int32_t** ids);
void edgec_free(void* memory);

/* ---- text that comes token by token ---- */

typedef struct edgec_stream edgec_stream;

/* A stream gives the text of tokens as they come: whole characters, and nothing that may be the
 * beginning of a stop string. `continues`: whether the text goes on after another one, so that a
 * space at its beginning stays. `special`: whether the text of special tokens is given, too. */
edgec_stream* edgec_stream_open(const edgec_tokenizer* tokenizer, int continues, int special);
void edgec_stream_close(edgec_stream* stream);

/* Stop at a text that is not empty. 0, or an error above. */
int edgec_stream_stop_at(edgec_stream* stream, const char* text, size_t bytes);

/* The text that a token adds: its bytes, and where they are until the next call; or an error. */
int64_t edgec_stream_put(edgec_stream* stream, int32_t id, const char** text);

/* The same for what is still held back when no more tokens come. */
int64_t edgec_stream_end(edgec_stream* stream, const char** text);

/* Whether a stop string was found; it is not given, nor what comes behind it. */
int edgec_stream_stopped(const edgec_stream* stream);

/* ---- conversations ---- */

/* Put a conversation into the words of the model, ready for its answer. Roles are "system" (first
 * only), "user" and "assistant" in turns, the last is of the user. Returns the bytes of `*text`,
 * which edgec_free takes; EDGEC_TEXT_NO_CHAT if the model has no form for these roles. */
int64_t edgec_chat_text(const edgec_tokenizer* tokenizer, const char* const* roles,
                        const char* const* contents, size_t messages, char** text);

/* ---- the choice of a token ---- */

/* How the next token is chosen. Zeros are: the likeliest, from all tokens, without penalty.
 * Applied in this order, which is that of the package transformers. */
typedef struct {
  float repetition_penalty; /* 0 or 1: none */
  float temperature;        /* 0: the likeliest token */
  int32_t top_k;            /* 0: all */
  float top_p;              /* 0 or 1: all */
  float min_p;              /* 0: all */
  uint64_t seed;
} edgec_sampling;

typedef struct edgec_sampler edgec_sampler;

edgec_sampler* edgec_sampler_open(int32_t tokens, const edgec_sampling* sampling);
void edgec_sampler_close(edgec_sampler* sampler);

/* Note a token of the context, for the repetition penalty. */
void edgec_sampler_note(edgec_sampler* sampler, int32_t id);

/* Forget the context, and begin again with the seed. */
void edgec_sampler_reset(edgec_sampler* sampler);

/* The next token by the logits of all tokens; -1 if none of them is a number. */
int32_t edgec_sample(edgec_sampler* sampler, const float* logits);

#ifdef __cplusplus
}
#endif

#endif
