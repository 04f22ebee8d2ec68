"""Case studies: published weights of nets that train with dropout and batch norm, and what each repair does to them."""
