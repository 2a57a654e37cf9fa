"""mcdrop over HTTP: a thin FastAPI application around the library.

    bytes -> routes -> wire.decode -> scheduler -> run: prefix, passes, moments -> Prediction
    bytes <- routes <- wire.encode <-----------------------------------------------'

`service.app.create_app(settings)` gives the ASGI application, `service.server.serve(settings)` runs it.
"""
