# Starts an agent and a proxy, and prints what they found: which programs are attached, and whether
# acceleration is on and why.
echo "weft-vm: begin weft check and status"
mkdir -p /sys/fs/cgroup/kubepods.slice /sys/fs/cgroup/weft-proxy /run/weft /run/manifests
echo '{"apiVersion":"v1","kind":"Node","metadata":{"name":"vm"}}' > /run/manifests/node.yaml
weft agent --node vm --manifests /run/manifests --run-dir /run/weft --ca-dir /run/weft-ca \
    --pods-cgroup /sys/fs/cgroup/kubepods.slice --proxy-cgroup /sys/fs/cgroup/weft-proxy \
    > /run/agent.log 2>&1 &
agent=$!
weft status --wait 60s > /run/status.txt 2>&1
status=$?
# The table of maps says nothing here.
sed '/^MAP/,/^$/d' /run/status.txt
weft check 2>&1
programs=$(weft status -o json 2>/dev/null | jq '.programs | length')
echo "$programs programs are attached"
if [ "${programs:-0}" -lt 17 ]; then
    status=1
    cat /run/agent.log
fi
kill "$agent"
wait "$agent"
weft uninstall > /dev/null 2>&1
echo "weft-vm: status $status"
