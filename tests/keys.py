"""The names of keys as Redis has them: in the service, ``ScriptRunner`` adds the prefix."""

from app.store.layout import PREFIX, with_version


def stored(name: str) -> str:
    """Return the name in Redis of a key that a store names."""
    return with_version(PREFIX) + name
