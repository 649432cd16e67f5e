"""Cubes of many bands in place of pictures: which files hold them, reading, false colours."""
