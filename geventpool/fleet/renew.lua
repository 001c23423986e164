-- Who may have how many connections of one cap: geventpool.fleet.share.grant, in Redis.
--
-- KEYS[1]: a hash with a field "epoch", one "learns_until", and one for each process.
-- ARGV: id, cap, used, has, wants, weight, floor, lease, generation, a new epoch.
-- Answers share, members, epoch.

local MEMORY = 6

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local id, cap = ARGV[1], tonumber(ARGV[2])
local own = {
    used = tonumber(ARGV[3]), has = tonumber(ARGV[4]), wants = tonumber(ARGV[5]),
    weight = tonumber(ARGV[6]), floor = tonumber(ARGV[7]), lease = tonumber(ARGV[8]),
    generation = tonumber(ARGV[9]),
}

local function beyond_floor(each, newest)
    if each.generation < newest then return 0 end
    return math.max(0, each.wants - each.floor)
end

local function water_level(claims, whole)
    table.sort(claims, function(a, b) return a.wants / a.weight < b.wants / b.weight end)
    local level, width, left = 0, 0, whole
    for _, each in ipairs(claims) do width = width + each.weight end
    for _, each in ipairs(claims) do
        local height = each.wants / each.weight
        if (height - level) * width >= left then return level + left / width end
        left = left - (height - level) * width
        level = height
        width = width - each.weight
    end
    return level
end

local function max_min(claims, whole, wanted)
    if whole <= 0 then return 0 end
    local level, given, ranked = water_level(claims, whole), {}, {}
    local left = whole
    for _, each in ipairs(claims) do
        local least = math.min(each.wants, math.floor(each.weight * level * (1 - 1e-12)))
        given[each.id] = least
        left = left - least
        for unit = least + 1, math.min(each.wants, least + each.weight + 1) do
            ranked[#ranked + 1] = {unit / each.weight, each.id}
        end
    end
    table.sort(ranked, function(a, b)
        if a[1] ~= b[1] then return a[1] < b[1] end
        return a[2] < b[2]
    end)
    for place = 1, math.min(left, #ranked) do
        local other = ranked[place][2]
        given[other] = given[other] + 1
    end
    return given[wanted]
end

local epoch = redis.call('HGET', KEYS[1], 'epoch')
local learns_until = tonumber(redis.call('HGET', KEYS[1], 'learns_until') or 0)
if not epoch then
    epoch, learns_until = ARGV[10], now + own.lease
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'learns_until', string.format('%.6f', learns_until))
end

local free, floors, newest, members, live = cap, own.floor, own.generation, 1, {}
local fields = redis.call('HGETALL', KEYS[1])
local longest = own.lease
for place = 1, #fields, 2 do
    local other = fields[place]
    if string.sub(other, 1, 2) == 'p:' and other ~= 'p:' .. id then
        local each = cjson.decode(fields[place + 1])
        each.id = string.sub(other, 3)
        if now >= each.expires + MEMORY * each.lease then
            redis.call('HDEL', KEYS[1], other)
        else
            floors = floors + each.floor
            longest = math.max(longest, each.lease)
            if now < each.expires then
                free = free - math.max(each.share, each.used, each.has)
                newest = math.max(newest, each.generation)
                members = members + 1
                live[#live + 1] = each
            else
                free = free - each.floor
            end
        end
    end
end

local share
if now < learns_until then
    share = own.has
    if share == 0 then share = math.min(own.floor, math.max(free, 0)) end
else
    local claims = {}
    for _, each in ipairs(live) do
        claims[#claims + 1] = {id = each.id, wants = beyond_floor(each, newest), weight = each.weight}
    end
    claims[#claims + 1] = {id = id, wants = beyond_floor(own, newest), weight = own.weight}
    local wanted = own.floor + max_min(claims, cap - floors, id)
    share = math.max(0, math.min(wanted, free))
end

own.share = share
own.expires = now + own.lease
redis.call('HSET', KEYS[1], 'p:' .. id, cjson.encode(own))
redis.call('PEXPIRE', KEYS[1], math.ceil((MEMORY + 1) * longest * 1000))
return {share, members, epoch}
