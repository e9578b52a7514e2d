"""The store of small models, which the tests of serving use, too."""

from support.served import model_store as model_store
