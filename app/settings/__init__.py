"""The settings, read from the environment and ``.env`` and validated at start."""

from app.settings.clients import make_endpoints
from app.settings.environment import SettingsError
from app.settings.misspelt import misspelt_settings
from app.settings.policies import make_policies
from app.settings.redact import redacted_settings
from app.settings.settings import OPEN_CLIENT, Mode, Settings, load_settings, setting_names
from app.settings.validators import CLIENT_NAME

__all__ = [
    "CLIENT_NAME",
    "OPEN_CLIENT",
    "Mode",
    "Settings",
    "SettingsError",
    "load_settings",
    "make_endpoints",
    "make_policies",
    "misspelt_settings",
    "redacted_settings",
    "setting_names",
]
