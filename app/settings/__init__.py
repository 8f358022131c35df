"""The settings, read from the environment and ``.env`` and validated at start."""

from app.settings.environment import SettingsError
from app.settings.settings import OPEN_CLIENT, Mode, Settings, load_settings, setting_names

__all__ = ["OPEN_CLIENT", "Mode", "Settings", "SettingsError", "load_settings", "setting_names"]
