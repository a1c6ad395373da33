from service_process import configs, photo, service, start  # noqa: F401 - fixtures for every test below
