"""Put together what takes versions from a hub, and run it beside what is served.

`arrival` waits for a root to believe; `assembly` builds it all once, where there is one; `contact`
keeps in touch with the hub; `checks` looks into what was fetched before a native parser does;
`chores` are what is done now and then; `view` is what an operator sees and says.
"""
