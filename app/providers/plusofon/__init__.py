"""The provider Plusofon: a client of its API, and a sandbox that speaks the same protocol."""
