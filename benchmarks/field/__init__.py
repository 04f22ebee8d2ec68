"""The field report: what evenkeel says of models that train with dropout and batch norm, domain by domain."""
