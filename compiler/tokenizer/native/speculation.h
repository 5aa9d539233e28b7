/* Guesses of what follows: where the last tokens were there before, what followed them then
 * (prompt lookup: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). Whether they pay is
 * measured. */
#ifndef EDGEC_SPECULATION_H
#define EDGEC_SPECULATION_H

#include <stddef.h>
#include <stdint.h>

/* What guesses cost and gave, in nanoseconds; zeros to begin with. */
typedef struct {
  double plain;   /* of a run that reads one token, lately */
  double checked; /* of a run that reads guesses, too */
  double balance; /* that guesses may lose */
} edgec_guess_account;

/* Write up to `most` guesses of what follows `count` tokens; how many. Behind the last token a
 * repetition goes on in a circle. */
size_t edgec_guess(const int32_t* tokens, size_t count, int32_t* guesses, size_t most);

/* Whether guesses may be tried: as long as they lost no more than a hundredth of the time. */
int edgec_guesses_pay(const edgec_guess_account* account);

/* Note a run without guesses, one with them, and a guess that was right. */
void edgec_note_plain(edgec_guess_account* account, double nanoseconds);
void edgec_note_checked(edgec_guess_account* account, double nanoseconds);
void edgec_note_right(edgec_guess_account* account);

double edgec_now(void);

#endif
