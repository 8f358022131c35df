"""Plusofon Verify: proves that a person holds a Russian phone number, by a call that speaks a code."""
