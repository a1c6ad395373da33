from file_server import file_server, home  # noqa: F401 - fixtures for every test below
