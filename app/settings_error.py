"""The error of wrong settings, apart from them: a command that needs no settings does not import them."""


class SettingsError(Exception):
    """The settings are wrong. ``sentences`` has one for each mistake, none with a value."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences
