"""The one exception that a person caused and can mend."""


class UserError(ValueError):
  """Bad input: the message is one line that names the field and the fix; exit code 2."""
