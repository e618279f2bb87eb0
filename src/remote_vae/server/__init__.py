"""The HTTP server. `app.build_app` brings models, engine and HTTP together."""
