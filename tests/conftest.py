from file_server import file_server, home  # noqa: F401 - fixtures for every test below
from sam_fixtures import image_file, instance_folders, pixels, sam_folders  # noqa: F401
