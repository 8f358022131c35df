"""A second provider: a signed POST to a URL, behind which somebody else places the call or sends the message."""
