async def test_walk(world):
    p, key, s = await world.furnish()
    a = await world.ask("POST", f"/projects/{p}/configs", {"key": "a/b", "schema_id": s, "content": {"z": 1, "rate": 2}}, as_user="owner")
    print(a)
    assert a.status == 201
    a = await world.ask("GET", f"/read/{key}/a%2Fb")
    print(a)
    assert a.raw == b'{"key":"a/b","version":1,"content":{"z":1,"rate":2}}'
    a = await world.ask("GET", f"//openapi.json")
    a = await world.ask("GET", f"//docs")
    print(a.headers)
    a = await world.ask("GET", f"//nope")
    print(a)
