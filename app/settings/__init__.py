"""The settings: read from the environment and ``.env``, checked at start, told as one sentence per mistake."""

from app.settings.fields import CLIENT_NAME
from app.settings.policies import make_policies
from app.settings.settings import Mode, Settings, SettingsError, load_settings
from app.settings.shown import shown_settings
from app.settings.unknown import unknown_settings
from app.settings.webhooks import make_endpoints

__all__ = [
    "CLIENT_NAME",
    "Mode",
    "Settings",
    "SettingsError",
    "load_settings",
    "make_endpoints",
    "make_policies",
    "shown_settings",
    "unknown_settings",
]
