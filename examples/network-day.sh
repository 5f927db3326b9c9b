#!/bin/bash
# A day of a network: three machines on it, one with a published port, one that may reach nothing
# outside, and the network broken and repaired. It needs no root, and removes what it makes.
set -eu
net=day

remove() {
	cerne rm --force web db worker >/dev/null 2>&1 || true
	cerne network rm $net >/dev/null 2>&1 || true
}
trap remove EXIT

# Three machines on one network. Each has an address that stays, and a name that the others resolve.
cerne network create $net
cerne run -d --name web --network $net --publish 0:80 "$@" tiny
cerne run -d --name db --network $net --egress none "$@" tiny
cerne run -d --name worker --network $net "$@" tiny
cerne ls

# web serves its name; the others reach it by name, and this host by the published port.
cerne exec web -- sh -c 'mkdir -p /w; hostname > /w/index.html; httpd -p 80 -h /w'
cerne exec worker -- wget -q -O - http://web/
port=$(cerne publish ls web --json | grep -o '"host_port": [0-9]*' | grep -o '[0-9]*')
curl --silent "http://127.0.0.1:$port/"

# db reaches its neighbours, and nothing outside: not even by address.
cerne exec db -- ping -c 1 -W 10 web
if cerne exec db -- timeout 5 wget -q -O /dev/null http://192.0.2.1/; then exit 1; fi

# Its rate and what it may reach are changed while it runs.
cerne network set $net db --allow 192.0.2.0/24:443 --rate 10M
cerne inspect db | grep egress

# The network breaks: its DHCP and DNS server is killed. It is put right, and machines keep their cards.
pid=$(cerne network inspect $net --json | grep -o '"dnsmasq": [0-9]*' | grep -o '[0-9]*')
kill "$pid"
cerne network repair $net
cerne exec worker -- ping -c 1 -W 10 db

# A copy of the worker has an address of its own on the same network.
cerne fork worker --name copy
cerne exec copy -- ping -c 1 -W 10 web
cerne rm --force copy
cerne network inspect $net
echo "the day is over"
