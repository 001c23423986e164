"""contrib.pika, and RabbitMQ."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import gevent
import pika
import pika.exceptions

from support.contract import Adapter, Address
from support.small_servers import OwnRabbitMq, ports_of_clients

__all__ = ["Pika"]


class Pika(Adapter):
    """A queue of its own is what echoes; a slow answer is one that is published late."""

    name = "pika"
    server = "rabbitmq"
    own_server = OwnRabbitMq
    lost = (pika.exceptions.AMQPError, OSError)
    states = (
        *("a message in a private queue", "a named private queue", "a consumer", "prefetch"),
        *("a message not acknowledged", "a second channel", "a transaction", "a closed channel"),
    )
    protocol_errors = r"protocol|frame_error|unexpected_frame|syntax_error|command_invalid"

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.pika import PikaPool

        host, port = address
        return PikaPool(f"amqp://guest:guest@{host}:{port}/%2F", size, **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        channel = conn.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        if seconds:
            # It comes to the queue that is asked once its time is up in this one.
            late = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
            waiting = channel.queue_declare("", exclusive=True, arguments=late).method.queue
            lives = pika.BasicProperties(expiration=str(int(seconds * 1000)))
            channel.basic_publish("", waiting, token.encode(), lives)
            for _, _, body in channel.consume(queue, auto_ack=True):
                return body.decode()  # type: ignore[no-any-return]
        channel.basic_publish("", queue, token.encode())
        while (body := channel.basic_get(queue, auto_ack=True)[2]) is None:
            gevent.sleep(0)
        return body.decode()  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return conn._impl._transport._sock.getsockname()[1]  # type: ignore[no-any-return]

    def sessions(self, address: Address) -> set[Hashable]:
        return ports_of_clients(address)

    def leave(self, state: str, conn: Any) -> object:
        channel = conn.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        if state == "a message in a private queue":
            channel.basic_publish("", queue, b"left")
        elif state == "a named private queue":
            channel.queue_declare("geventpool left", exclusive=True)
        elif state == "a consumer":
            channel.basic_consume(queue, lambda *_: None)
        elif state == "prefetch":
            channel.basic_qos(prefetch_count=1)
        elif state == "a message not acknowledged":
            channel.basic_publish("", queue, b"left")
            channel.basic_get(queue)
        elif state == "a second channel":
            return queue, conn.channel()
        elif state == "a transaction":
            channel.tx_select()
        elif state == "a closed channel":
            try:
                channel.queue_declare("geventpool no such queue", passive=True)
            except pika.exceptions.ChannelClosedByBroker:
                pass
        return queue, None

    def remains(self, state: str, conn: Any) -> object:
        if len(conn._impl._channels) > 1:
            return "a channel"
        channel = conn.channel()
        if channel.consumer_tags:
            return "a consumer"
        if state == "a transaction":
            try:
                return channel.tx_rollback()
            except pika.exceptions.ChannelClosedByBroker:
                channel = conn.channel()
        try:
            return channel.queue_declare("geventpool left", passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return None
