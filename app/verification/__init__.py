"""The domain: what a verification is and which rules it follows. Knows no framework, no clock, no network."""
