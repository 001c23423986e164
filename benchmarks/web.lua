-- What wrk asks of examples/flask_app, and how it counts: see web.py.
local share = tonumber(os.getenv("TIMEOUTS"))
local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init()
  math.randomseed(number)
  asked, right, refused, wrong = 0, 0, 0, 0
end

function request()
  asked = asked + 1
  local headers = {}
  if math.random() < share then
    headers["X-Timeout"] = string.format("%.4f", 0.0005 + 0.0595 * math.random())
  end
  return wrk.format("GET", "/hello/" .. number .. "-" .. asked, headers)
end

-- An answer is right if database and cache speak of the same request.
function response(status, headers, body)
  if status ~= 200 then
    refused = refused + 1
  elseif body:match('"greeting":"hello, ([^"]*)"') == body:match('"name":"([^"]*)"') then
    right = right + 1
  else
    wrong = wrong + 1
  end
end

function done(summary, latency)
  local sums = {right = 0, refused = 0, wrong = 0}
  for _, thread in ipairs(threads) do
    for name in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
  end
  print(string.format('RESULT {"right": %d, "refused": %d, "wrong": %d, "seconds": %f, "p99": %f}',
    sums.right, sums.refused, sums.wrong, summary.duration / 1e6, latency:percentile(99) / 1e6))
end
