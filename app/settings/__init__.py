"""The settings, read from the environment and ``.env`` and validated at start."""

from app.settings.settings import (
    OPEN_CLIENT,
    Mode,
    Settings,
    given_settings,
    load_settings,
    may_look_for_sandbox,
    setting_names,
)
from app.settings_error import SettingsError

__all__ = [
    "OPEN_CLIENT",
    "Mode",
    "Settings",
    "SettingsError",
    "given_settings",
    "load_settings",
    "may_look_for_sandbox",
    "setting_names",
]
