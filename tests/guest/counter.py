# A process with everything that a pause could break: memory that counts, a TCP connection to itself, an open file that is
# half written. It says how far it is in /tmp/n: the count, its process id, and the monotonic clock.
import os
import socket
import time

server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
half = open("/workspace/half", "w", buffering=1)
count = 0
while True:
    count += 1
    client.sendall(b"%8d" % count)
    assert int(peer.recv(8, socket.MSG_WAITALL)) == count
    half.write(f"{count}\n")
    with open("/tmp/n.new", "w") as file:
        file.write(f"{count} {os.getpid()} {time.monotonic()}")
    os.replace("/tmp/n.new", "/tmp/n")
    if count == 1:
        with open("/tmp/counts", "w") as file:
            file.write("it counts\n")
    time.sleep(0.2)
