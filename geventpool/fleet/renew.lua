-- Who may have how many connections of one cap: geventpool.fleet.share.grant, in Redis.
--
-- KEYS[1]: a hash with a field "epoch", one "learns_until", and one for each process.
-- ARGV: id, cap, used, has, needs, wants, weight, floor, lease, generation, number, a new epoch,
-- and the place that it was given, or nothing.
-- Answers share, members, epoch, place.

local MEMORY = 6

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local id, cap = ARGV[1], tonumber(ARGV[2])
local own = {
    id = id, used = tonumber(ARGV[3]), has = tonumber(ARGV[4]), needs = tonumber(ARGV[5]),
    wants = tonumber(ARGV[6]), weight = tonumber(ARGV[7]), floor = tonumber(ARGV[8]),
    lease = tonumber(ARGV[9]), generation = tonumber(ARGV[10]), number = tonumber(ARGV[11]),
}

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

-- What the one called *wanted* gets, and what is left of the whole.
local function max_min(claims, whole, wanted)
    if whole <= 0 then return 0, 0 end
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
    return given[wanted], math.max(0, left - #ranked)
end

-- What this one is to have beyond its floor.
local function beyond_floor(live, newest, whole)
    if own.generation < newest then return 0 end
    local needed, liked = {}, {}
    for _, each in ipairs(live) do
        if each.generation == newest then
            local needs = math.max(0, each.needs - each.floor)
            local likes = math.max(0, math.max(0, each.wants - each.floor) - needs)
            needed[#needed + 1] = {id = each.id, wants = needs, weight = each.weight}
            liked[#liked + 1] = {id = each.id, wants = likes, weight = each.weight}
        end
    end
    local first, left = max_min(needed, whole, id)
    return first + max_min(liked, left, id)
end

local epoch = redis.call('HGET', KEYS[1], 'epoch')
local learns_until = tonumber(redis.call('HGET', KEYS[1], 'learns_until') or 0)
if not epoch then
    epoch, learns_until = ARGV[12], now + own.lease
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'learns_until', string.format('%.6f', learns_until))
end

local free, floors, newest, members, live = cap, own.floor, own.generation, 1, {}
local fields = redis.call('HGETALL', KEYS[1])
local longest, last, taken = own.lease, nil, {}
for place = 1, #fields, 2 do
    local other = fields[place]
    local each = string.sub(other, 1, 2) == 'p:' and cjson.decode(fields[place + 1])
    if each and each.id == id then
        last = each
    elseif each then
        if now >= each.expires + MEMORY * each.lease then
            redis.call('HDEL', KEYS[1], other)
        else
            if each.place then taken[each.place] = true end
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

if last and own.number <= last.number then
    return {last.share, members, epoch, last.place}
end

local share
if now < learns_until then
    share = own.has
    if share == 0 then share = math.min(own.floor, math.max(free, 0)) end
else
    live[#live + 1] = own
    local wanted = own.floor + beyond_floor(live, newest, cap - floors)
    share = math.max(0, math.min(wanted, free))
end

local place = last and last.place or tonumber(ARGV[13])
if not place or taken[place] then
    place = 0
    while taken[place] do place = place + 1 end
end

own.share = share
own.place = place
own.expires = now + own.lease
redis.call('HSET', KEYS[1], 'p:' .. id, cjson.encode(own))
redis.call('PEXPIRE', KEYS[1], math.ceil((MEMORY + 1) * longest * 1000))
return {share, members, epoch, place}
