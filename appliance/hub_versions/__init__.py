"""Put together what takes versions from a hub, and run it beside what is served.

`assembly` builds it all once, where there is a root to believe; `contact` keeps in touch with the
hub; `checks` looks into what was fetched before a native parser does; `chores` are what is done now
and then; `view` is what an operator sees and says.
"""
