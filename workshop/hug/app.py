# The tutorial's microservice: one route. (A docstring here would show up in the 404 that hug writes.)
import hug


@hug.get()
def index():
    return {"timber": "so delicious"}
