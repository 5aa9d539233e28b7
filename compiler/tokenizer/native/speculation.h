/* Guesses of what follows: where the last tokens were there before, what followed them then
 * (prompt lookup: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). Whether they pay is
 * measured. */
#ifndef EDGEC_SPECULATION_H
#define EDGEC_SPECULATION_H

#include <stddef.h>
#include <stdint.h>

/* Guesses after two tokens that were there before, after a few, and after many: the more, the more
 * of them are right, so each kind has an account. */
enum { EDGEC_GUESS_KINDS = 3 };

/* What guesses cost and gave, in nanoseconds; zeros to begin with. */
typedef struct {
  double plain;                      /* of a run that reads one token, lately */
  double checked;                    /* of a run that reads guesses, too */
  double balance[EDGEC_GUESS_KINDS]; /* that guesses may lose */
  int kind;                          /* of the guesses that were checked last */
} edgec_guess_account;

/* Write `most` guesses of what follows `count` tokens; how many of the last tokens were there before,
 * 0 if there are no guesses. Behind the last token a repetition goes on in a circle. */
size_t edgec_guess(const int32_t* tokens, size_t count, int32_t* guesses, size_t most);

/* Whether guesses after so many tokens may be tried: as long as their kind lost no more than a
 * hundredth of the time. */
int edgec_guesses_pay(const edgec_guess_account* account, size_t matching);

/* Note a run without guesses, one with guesses after so many tokens, and a guess that was right. */
void edgec_note_plain(edgec_guess_account* account, double nanoseconds);
void edgec_note_checked(edgec_guess_account* account, size_t matching, double nanoseconds);
void edgec_note_right(edgec_guess_account* account);

double edgec_now(void);

#endif
