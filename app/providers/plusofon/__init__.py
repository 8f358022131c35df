"""The provider Plusofon: its API, and its channels."""
