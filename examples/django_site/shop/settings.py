"""The database is PostgreSQL, or with ``DB_ENGINE=mysql`` MySQL or MariaDB; see DATABASES."""

import os

ENGINE = os.environ.get("DB_ENGINE", "postgresql")
DATABASES = {
    "default": {
        "ENGINE": f"geventpool.contrib.django.{ENGINE}",
        "NAME": os.environ.get("DB_NAME", "shop"),
        "USER": os.environ.get("DB_USER", "postgres" if ENGINE == "postgresql" else "root"),
        "PASSWORD": os.environ.get("DB_PASSWORD", ""),
        "HOST": os.environ.get("DB_HOST", "127.0.0.1"),
        "PORT": os.environ.get("DB_PORT", ""),
        "CONN_MAX_AGE": 3600,  # no connection of the pool gets older
        "OPTIONS": {"pool": {"size": 5, "timeout": 10.0}},
    }
}
if ENGINE == "mysql":
    DATABASES["default"]["OPTIONS"]["ssl_disabled"] = True

MIDDLEWARE = ["shop.views.Unavailable"]

SECRET_KEY = "for an example only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
