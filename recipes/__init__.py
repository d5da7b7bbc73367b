"""How the packaged models were made and measured."""
