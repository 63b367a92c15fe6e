from livery_adapters.registry_sql import *  # noqa: F403
from livery_adapters.registry_sql import __all__  # noqa: F401
