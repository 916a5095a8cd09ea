/* A client that costs next to nothing:
 *   driver PORT CONNECTIONS REQUESTS SECONDS STATUS ANSWER_BYTES HEAD TAIL BLOCK FILE_BYTES
 *
 * Sends the same request over each connection, again and again, until REQUESTS were begun in all
 * or SECONDS have passed: HEAD, then FILE_BYTES out of the file BLOCK (repeated from its start),
 * then TAIL. Each answer must have STATUS and, unless that is 0, ANSWER_BYTES of body. Prints JSON:
 * when it began (CLOCK_MONOTONIC), seconds until the last answer, microseconds of each request,
 * and the first fault, at which it stops.
 */
#include "http.h"

enum { STALL_MS = 120 * 1000 };

struct connection {
    int fd;
    bool idle, answering, close;
    long long sent, body_left;
    char buffer[BUFFER];
    size_t have;
    double begun;
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static const char *head, *tail;
static long long head_bytes, tail_bytes, file_bytes, answer_bytes, requests, begun, ended;
static int block_fd, status, poll_fd;
static off_t block_size;
static double deadline;
static double *latencies;
static size_t room;
static char fault_text[FAULT];

static void fault(const char *what, const char *detail) {
    char text[FAULT];
    snprintf(text, sizeof text, "%s: %.120s", what, detail);
    if (!*fault_text) json_text(fault_text, sizeof fault_text, text);
}

static void connect_anew(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        fault("connect", strerror(errno));
        return;
    }
    no_delay(c->fd);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static bool begin(struct connection *c) {
    double time = now();
    c->idle = begun == requests || time > deadline;
    if (c->idle) return false;
    begun++;
    c->begun = time;
    c->sent = 0;
    c->have = 0;
    c->answering = false;
    return true;
}

/* Send what goes without waiting; false when the socket takes no more. */
static bool send_some(struct connection *c) {
    long long all = head_bytes + file_bytes + tail_bytes, at = c->sent;
    ssize_t count;
    if (at < head_bytes) {
        int flags = MSG_NOSIGNAL | (file_bytes ? MSG_MORE : 0);
        count = send(c->fd, head + at, (size_t)(head_bytes - at), flags);
    } else if (at < head_bytes + file_bytes) {
        off_t offset = (off_t)((at - head_bytes) % block_size), left = block_size - offset;
        long long wanted = head_bytes + file_bytes - at;
        if (wanted > left) wanted = left;
        count = sendfile(c->fd, block_fd, &offset, (size_t)(wanted < PIECE ? wanted : PIECE));
    } else {
        count = send(c->fd, tail + (at - head_bytes - file_bytes), (size_t)(all - at),
                     MSG_NOSIGNAL);
    }
    if (count < 0) {
        if (errno == EAGAIN) return false;
        /* An answer before the end of the body says more than the error does. */
        int error = errno;
        ssize_t early = recv(c->fd, c->buffer, BUFFER - 1, 0);
        c->buffer[early > 0 ? early : 0] = 0;
        fault(strerror(error), c->buffer);
        return false;
    }
    c->sent += count;
    c->answering = c->sent == all;
    return true;
}

/* Read what is there of the answer; false when more has to come. */
static bool receive_some(struct connection *c) {
    ssize_t count;
    if (c->body_left) {
        count = recv(c->fd, NULL, (size_t)(c->body_left < PIECE ? c->body_left : PIECE), MSG_TRUNC);
    } else {
        count = recv(c->fd, c->buffer + c->have, BUFFER - 1 - c->have, 0);
    }
    if (count <= 0) {
        if (count < 0 && errno == EAGAIN) return false;
        fault("no whole answer", count ? strerror(errno) : "the connection was closed");
        return false;
    }
    if (c->body_left) {
        c->body_left -= count;
    } else {
        c->have += (size_t)count;
        c->buffer[c->have] = 0;
        size_t length = head_length(c->buffer, c->have);
        if (!length) return true;
        const char *value = header(c->buffer, length, "\r\nContent-Length:");
        long long bytes = value ? atoll(value) : -1;
        if (atoi(c->buffer + 9) != status || bytes < 0 || (answer_bytes && bytes != answer_bytes)) {
            fault("answer", c->buffer);
            return false;
        }
        c->close = says_close(c->buffer, length);
        c->body_left = bytes - (long long)(c->have - length);
    }
    if (c->body_left) return true;
    if ((size_t)ended == room) {
        room = room ? room * 2 : 4096;
        if (!(latencies = realloc(latencies, room * sizeof *latencies))) die("realloc");
    }
    latencies[ended++] = now() - c->begun;
    if (c->close) {
        close(c->fd);
        connect_anew(c);
    }
    return begin(c);
}

int main(int count, char **arguments) {
    if (count != 11) return 2;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)atoi(arguments[1]));
    int connections = atoi(arguments[2]);
    requests = atoll(arguments[3]);
    status = atoi(arguments[5]);
    answer_bytes = atoll(arguments[6]);
    head_bytes = (long long)strlen(head = arguments[7]);
    tail_bytes = (long long)strlen(tail = arguments[8]);
    if ((block_fd = open(arguments[9], O_RDONLY)) < 0) die("BLOCK");
    block_size = file_size(block_fd);
    file_bytes = atoll(arguments[10]);
    poll_fd = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    if (!all) die("calloc");
    for (int i = 0; i < connections; i++) connect_anew(&all[i]);
    double start = now();
    deadline = start + atof(arguments[4]);
    for (int i = 0; i < connections; i++) begin(&all[i]);
    struct epoll_event events[64];
    for (int i = 0; i < connections && !*fault_text; i++)
        while (!all[i].idle && (all[i].answering ? receive_some(&all[i]) : send_some(&all[i])))
            ;
    while (ended < begun && !*fault_text) {
        int ready = epoll_wait(poll_fd, events, 64, STALL_MS);
        if (ready == 0) fault("silence", "nothing moved for two minutes");
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            while (!c->idle && !*fault_text && (c->answering ? receive_some(c) : send_some(c)))
                ;
        }
    }
    printf("{\"begun\":%.6f,\"seconds\":%.6f,\"fault\":\"%s\",\"latencies_us\":[", start,
           now() - start, fault_text);
    for (long long i = 0; i < ended; i++) printf(i ? ",%.1f" : "%.1f", latencies[i] * 1e6);
    printf("]}\n");
    return 0;
}
