/* The compression function of SHA-256 (FIPS 180-4, 6.2.2), by the CPU's own instructions where it
   has them: SHA extensions of x86, SHA2 of Armv8. What a CPU has is asked when the program runs. */
#ifndef EDGEC_SHA256_BLOCKS_H
#define EDGEC_SHA256_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

typedef void sha256_compressor(uint32_t state[8], const uint8_t* data, size_t blocks);

/* Compress blocks of 64 bytes into a state. */
void sha256_blocks(uint32_t state[8], const uint8_t* data, size_t blocks);

/* The same in plain C, which runs everywhere. */
void sha256_blocks_portable(uint32_t state[8], const uint8_t* data, size_t blocks);

/* What this CPU has instructions for; NULL if for nothing. */
sha256_compressor* sha256_blocks_native(void);

#endif
