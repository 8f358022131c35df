"""The provider relay: signed requests to a URL of the operator, behind which another system places the calls."""
