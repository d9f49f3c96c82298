/* Flights: large messages between two places that are both there.

   A large message is offered, granted, and then streams in DATA frames. A flight is one side's view of one such message
   that has begun: outgoing, it was offered; incoming, it is awaited or has been granted. `fly_both` moves one of each
   direction as far as it goes by itself: it takes the GRANT, writes and reads DATA frames while the peer does the
   opposite, and copies straight from and into the arrays. Both directions move in turn, so two sides that send to each
   other at the same moment both go on.

   It stops as soon as it meets anything else, or nothing has moved for a while. The flights say how far they are, and
   somebody goes on from there, if need be in the middle of a frame. The endpoint's lock is held throughout. */

#ifndef RMPI_FLIGHT_H
#define RMPI_FLIGHT_H

#include "lane.h"

enum stage { AWAITED = 0, OFFERED = 1, FLIES = 2, LANDED = 3 };

struct flight {
    Lane *lane;
    uint64_t message, context;
    enum stage stage;
    uint64_t length, offset; /* bytes of payload, and how many of them have left or come */
    uint64_t frame, left;    /* bytes of the DATA frame that is under way, and those of it still to go */
    Piece *pieces;
    Py_ssize_t count, at; /* pieces, and which one is next */
    uint64_t within;      /* bytes of that one which are done */
    Header header;        /* of that frame on its way out, */
    uint64_t unsent;      /* and how much of it the socket has not taken */
    PyObject **head;      /* of an awaited one: where the OFFER shall be put that comes; NULL: it stays where it is */
};

/* Whether both have landed; NULL for none. `limit` are the nanoseconds without movement after which it stops. */
bool fly_both(struct flight *out, struct flight *in, long long limit, bool yields);

#endif
