"""Say who made a bundle, and keep what is in it from those it is not for.

Signatures are Ed25519 (RFC 8032) over the digests of a bundle's files; encrypted files are in the
format of age (age-encryption.org/v1). `native/` is the same for the runner, in C.
"""
